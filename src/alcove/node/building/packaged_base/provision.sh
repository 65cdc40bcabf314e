#!/bin/sh
# Nothing: the base of a build is prepared in a sandbox (provision.py).
