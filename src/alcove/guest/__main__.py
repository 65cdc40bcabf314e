"""Entry of `python -m alcove.guest` and of the zipapp."""

from alcove.guest.main import main

raise SystemExit(main())
