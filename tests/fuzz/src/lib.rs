//! The decoders and what the targets do with them, taken in by their paths from the connectors.
#![allow(dead_code, unused_imports, reason = "the product uses more of these files than the targets do")]

#[path = "../../../connectors/src/postgres"]
mod postgres {
    pub(crate) mod copy;
    pub(crate) mod pgoutput;
}

#[path = "../../../connectors/src/fuzzing.rs"]
pub mod fuzzing;
