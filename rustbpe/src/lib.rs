//! The byte-level BPE trainer of nanochat. This file is the Python glue; the work is in the modules.

pub mod counter;
pub mod pretoken;
pub mod trainer;

#[cfg(feature = "python")]
mod arrow;
#[cfg(feature = "python")]
mod python;
