"""What transformers calls by other names in some of the versions that are supported."""

from contextlib import AbstractContextManager


def dtype_name() -> str:
    """The name of the weights' type in configurations and in `from_pretrained`; the former one is warned of."""
    from transformers import PretrainedConfig

    return "dtype" if hasattr(PretrainedConfig, "torch_dtype") else "torch_dtype"


def no_init_weights() -> AbstractContextManager[None]:
    """Inside, models are made without their weights being drawn."""
    try:
        from transformers.initialization import no_init_weights as inside
    except ImportError:  # before version 5
        from transformers.modeling_utils import no_init_weights as inside
    context: AbstractContextManager[None] = inside()
    return context
