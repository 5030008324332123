//! Feeds every committed input to its fuzz target, once: `sealock-replay DIRECTORY`.
//!
//! A program of its own, because a test binary's regions are also those of the tests. Deliberately absent: the
//! measure itself, which is the compiler's; whether an outcome is right, which the bodies say by panicking.

use std::path::Path;

use sealock_proto::fuzz::TARGETS;

fn main() -> std::io::Result<()> {
    let corpora = std::env::args_os().nth(1).expect("the directory of the corpora");
    for target in TARGETS {
        let mut inputs = 0;
        for entry in std::fs::read_dir(Path::new(&corpora).join(target.name))? {
            (target.run)(&std::fs::read(entry?.path())?);
            inputs += 1;
        }
        println!("{inputs:>5} inputs of {}", target.name);
    }
    Ok(())
}
