"""Sources -> PreferencePair -> TokenizedPair: file formats, chat templates and truncation are known here alone."""

from orpo_exp.data.base import DATA, DataConfig, Source, SourceData
from orpo_exp.registry import import_modules

import_modules(__name__, __path__, command="inspect")

__all__ = ["DATA", "DataConfig", "Source", "SourceData"]
