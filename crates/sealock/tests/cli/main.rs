//! The program as its user meets it: real processes on loopback.

mod controller;
mod demo;
mod flood;
mod long;
mod observed;
mod options;
mod program;
mod returning;
mod spoken;
mod unix;
mod verbs;
