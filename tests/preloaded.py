"""What commands of tests import and read alike, by the process that they are forked from: see `tests.forked`."""

from importlib import import_module

from lnl.trial.code_hash import code_hash

LIBRARIES = ("pandas", "pyarrow.parquet", "rich.console")
for name in (*LIBRARIES, "lnl.cli.run_command", "lnl.execution.worker"):
    import_module(name)
code_hash("supervised")
