//! A certificate authority for tests, with every freedom that the real one lacks.
