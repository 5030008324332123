//! What is and what is not an identity.
