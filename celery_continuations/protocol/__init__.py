"""The numbered rules: who may write which part of a record, and when."""
