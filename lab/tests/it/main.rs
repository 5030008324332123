//! The laboratory tried on itself: a tool that finds nothing must be shown finding something.

mod evidence;
mod faults;
mod node;
mod topology;
mod traffic;
