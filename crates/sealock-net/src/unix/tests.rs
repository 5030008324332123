//! The control socket as its callers meet it.
