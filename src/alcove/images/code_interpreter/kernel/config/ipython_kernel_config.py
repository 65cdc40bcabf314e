"""IPython's configuration in the kernels of the code interpreter."""

c = get_config()  # type: ignore[name-defined]  # IPython defines it

c.InteractiveShellApp.extensions = ["alcove_kernel"]

# Tracebacks are read by programs and models.
c.InteractiveShell.colors = "NoColor"
# Long lists and dicts are printed whole.
c.PlainTextFormatter.max_seq_length = 0

# Nobody recalls lines of another session: no database, no thread that writes it.
c.HistoryManager.enabled = False
