"""What can be known before a transfer: one file for each subject, run by `transfer.preflight`.

Each function takes what is known and gives `Check`s; none raises for what it finds.
"""
