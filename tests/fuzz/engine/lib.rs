//! The engine's vocabulary, taken in by its path.

#[path = "../../../engine/src/change/mod.rs"]
pub mod change;
