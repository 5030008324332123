//! The fuzz targets of the resumable stream: its frames, its machine under any calls, and its replay buffer.

mod buffer;
mod frames;
mod machine;
mod model;

pub(crate) use self::buffer::BUFFER;
pub(crate) use self::frames::FRAMES;
pub(crate) use self::machine::MACHINE;
pub(crate) use self::model::MODEL;
