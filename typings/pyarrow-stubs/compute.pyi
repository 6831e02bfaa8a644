# pyarrow.compute generates its functions at import, so type checkers cannot find them in the source.
from typing import Any

def __getattr__(name: str) -> Any: ...
