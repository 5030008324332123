//! The laboratory tried on itself: a tool that finds nothing must be shown finding something.

mod applications;
mod blindness;
mod clients;
mod demo;
mod detection;
mod evidence;
mod faults;
mod fence;
mod front_doors;
mod ladder;
mod leaks;
mod links;
mod load;
mod long;
mod node;
mod policy;
mod process_faults;
mod program;
mod servers;
mod survival;
mod three_machines;
mod topology;
mod traffic;
mod two_relays;
mod ways;
mod wire;
