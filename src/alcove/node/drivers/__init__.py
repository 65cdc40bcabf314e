"""Ways to isolate a sandbox; see driver.py for what each must do."""
