#!/usr/bin/env python
"""Where a model's time goes, module by module: see configs/profile.yaml."""

if __name__ == "__main__":
    from edgegen.commands.profile import main

    main()
else:
    # Scripts run with this folder first on the path, so that `import profile` in Python's own
    # cProfile finds this file instead of the module of the standard library: be that module.
    import sysconfig
    from pathlib import Path

    _standard = Path(sysconfig.get_path("stdlib")) / "profile.py"
    exec(compile(_standard.read_text(encoding="utf-8"), str(_standard), "exec"))
