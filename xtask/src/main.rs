//! DESC
fn main() {}
