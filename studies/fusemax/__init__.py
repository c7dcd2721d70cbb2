"""The FuseMax paper's tables and figures."""
