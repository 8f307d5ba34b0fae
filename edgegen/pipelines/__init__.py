"""Reading, building and writing diffusers pipelines."""

import logging


class _NoTorchvisionNotice(logging.Filter):
    """Drops transformers' notice, on each import of a pipeline, that torchvision is absent.

    It concerns image processors that no pipeline here loads, and torchvision is no dependency.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return "requires torchvision (not installed)" not in record.getMessage()


logging.getLogger("transformers.utils.import_utils").addFilter(_NoTorchvisionNotice())
