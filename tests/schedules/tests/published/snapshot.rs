//! A Snapshot without a store: what is published is the same.

use std::sync::Arc;

pub use ::engine::snapshot::AsOf;

use crate::materialization::Catalog;

pub struct Snapshot {
    pub as_of: AsOf,
    pub catalog: Arc<Catalog>,
}

impl Snapshot {
    pub fn as_of(&self) -> AsOf {
        self.as_of
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }
}
