"""The prompts that a command is given."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, ListConfig


def read_prompts(cfg: DictConfig) -> list[str]:
    """The prompts, from `prompts` (a text or a list of texts) or `prompts_file` (one a line).

    An empty text is a prompt: the model draws without being told what. Blank lines of a file are
    none. Raises ValueError or FileNotFoundError, naming the option.
    """
    given = [key for key in ("prompts", "prompts_file") if cfg.get(key) is not None]
    if len(given) != 1:
        found = "both" if given else "neither"
        raise ValueError(f"prompts and prompts_file: give one of the two, got {found}")
    if given == ["prompts_file"]:
        prompts = _lines(str(cfg.prompts_file))
    elif isinstance(cfg.prompts, ListConfig):
        prompts = list(cfg.prompts)
        if not prompts:
            raise ValueError("prompts=[]: the list is empty; give at least one prompt")
    else:
        prompts = [cfg.prompts]
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompts: each must be a text, and number {number} is {prompt!r}")
        check_unicode("prompts", prompt)
    return prompts


def _lines(name: str) -> list[str]:
    path = Path(name).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"prompts_file={name}: no such file")
    if not path.is_file():
        raise ValueError(f"prompts_file={name}: must be a text file, a prompt a line")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte {error.start} is not UTF-8"
        raise ValueError(f"prompts_file={name}: must be a text file; {place}") from error
    if "\0" in text:
        raise ValueError(f"prompts_file={name}: must be a text file; it holds zero bytes")
    # Not splitlines: it would also break at characters such as U+2028, inside a prompt.
    prompts = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    if not prompts:
        raise ValueError(f"prompts_file={name}: holds no prompt; write one a line")
    return prompts


def check_unicode(key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key}: must be UTF-8, and {text[:60]!r} is not") from error
