"""`alcove bench`: how fast this installation is, beside floors measured in the same run."""
