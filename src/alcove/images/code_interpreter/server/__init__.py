"""The code interpreter's server: POST /execute and /contexts on port 49999 (contract e2b 6).

It runs inside the sandbox, as root, beside the kernels, and talks to them by `jupyter_client`; no
Jupyter Server stands in between (docs/rfd/0014). Imports are relative: in the image this folder is
/opt/code-interpreter/server, and nothing else of Alcove is there.
"""
