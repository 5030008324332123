//! Development driver, not committed.
#[path = "system/deployment.rs"]
#[allow(dead_code)]
mod deployment;
#[path = "system/door.rs"]
mod door;
#[path = "system/world.rs"]
mod world;
