//! The program as its user meets it: real processes on loopback.

mod controller;
mod demo;
mod flood;
mod long;
mod options;
mod program;
mod returning;
mod verbs;
