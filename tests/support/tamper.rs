//! Alters what a stopped Tidemark has stored, as no code of it would: for tests of what finds that.

use std::ops::ControlFlow;
use std::path::Path;

use engine::aggregate::{Accumulator, Cell};
use engine::materialization::AggregateId;
use engine::store::codec::{put_cell, put_control, take_cell, take_control};
use engine::store::{Batch, KeyKind, Store, StoreMemory, key};

/// The store of a stopped Tidemark.
pub struct Tamper(Store);

/// Adds a cent, or what the smallest unit is, to a measure.
pub fn add_one(cell: &mut Cell, measure: usize) {
    let Accumulator::Sum(sum) = &mut cell.accumulators[measure] else { panic!("not a sum: {cell:?}") };
    sum.finite += 1;
}

impl Tamper {
    pub fn open(data: &Path) -> Tamper {
        Tamper(Store::open(data, StoreMemory::default()).unwrap_or_else(|error| panic!("{error}")))
    }

    /// Keys and cells of an aggregate, base level first.
    pub fn cells(&self, aggregate: u32) -> Vec<(Vec<u8>, Cell)> {
        let mut cells = Vec::new();
        let range = key::of_aggregate(KeyKind::Cell, AggregateId(aggregate));
        let scanned = self.0.view().scan(&range, |stored, value| {
            let mut cell = Cell::default();
            take_cell(value, &mut cell).unwrap();
            cells.push((stored.to_vec(), cell));
            ControlFlow::Continue(())
        });
        scanned.unwrap();
        cells
    }

    /// Replaces or removes a cell, and leaves its control total as it is.
    pub fn put(&self, stored: &[u8], cell: Option<&Cell>) {
        let mut batch = Batch::default();
        match cell {
            Some(cell) => {
                let mut value = Vec::new();
                put_cell(&mut value, 1, cell);
                batch.put(stored, &value);
            }
            None => batch.delete(stored),
        }
        self.write(batch);
    }

    /// Replaces a cell by one of as many rows, and its control total so that the two agree.
    pub fn put_in_balance(&self, stored: &[u8], cell: &Cell) {
        let mut before = Cell::default();
        take_cell(&self.0.get(stored).unwrap().unwrap(), &mut before).unwrap();
        let (id, level, bucket, _) = key::split_cell(stored).unwrap();
        let of_control = key::control(id, level, bucket);
        let mut control = take_control(&self.0.get(&of_control).unwrap().unwrap()).unwrap();
        let negated: Vec<Accumulator> = before.accumulators.iter().map(Accumulator::negate).collect();
        control.total.merge(-before.rows, &negated);
        control.total.merge(cell.rows, &cell.accumulators);
        let mut value = Vec::new();
        put_control(&mut value, 1, &control);
        let mut batch = Batch::default();
        batch.put(&of_control, &value);
        self.write(batch);
        self.put(stored, Some(cell));
    }

    /// Leaves the record of an aggregate as one was written before it said how clock readings became instants.
    pub fn forget_how_clocks_were_read(&self, aggregate: u32) {
        let stored = key::aggregate(AggregateId(aggregate));
        let mut record: serde_json::Value = serde_json::from_slice(&self.0.get(&stored).unwrap().unwrap()).unwrap();
        record.as_object_mut().unwrap().remove("clock_reading").unwrap();
        let mut batch = Batch::default();
        batch.put(&stored, record.to_string().as_bytes());
        self.write(batch);
    }

    /// Makes a row image into what is none.
    pub fn spoil_a_row(&self) {
        let mut stored = None;
        let scanned = self.0.view().scan(&key::of_kind(KeyKind::Row), |key, _| {
            stored = Some(key.to_vec());
            ControlFlow::Break(())
        });
        scanned.unwrap();
        let mut batch = Batch::default();
        batch.put(&stored.unwrap(), &[0xFF; 3]);
        self.write(batch);
    }

    fn write(&self, batch: Batch) {
        self.0.write(batch).unwrap();
        self.0.sync().unwrap();
    }
}
