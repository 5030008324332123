//! The program under test: found, fresh, and able to start in a namespace.

use anyhow::Result;
use lab::{Family, Spec, binary, scene};

#[test]
fn the_program_of_this_source_starts_in_a_namespace() -> Result<()> {
    let path = binary::sealock()?;
    assert!(path.is_file());
    scene(Family::V4, |lab| {
        let host = lab.namespace("host")?;
        let ended = lab.run(&host, Spec::sealock("sealock")?.args(["version"]))?;
        ended.success().map(drop)
    });
    Ok(())
}
