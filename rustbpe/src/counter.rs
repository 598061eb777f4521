//! Counts distinct pieces of text. Memory follows the distinct pieces, not the text.

use hashbrown::HashTable;
use rustc_hash::FxHasher;
use std::hash::Hasher;

/// A piece in the arena, with how often it was seen.
struct Entry {
    start: usize,
    length: u32,
    count: u64,
}

/// Pieces stored end to end in one arena, found through a table of their places.
#[derive(Default)]
pub struct Counter {
    arena: Vec<u8>,
    table: HashTable<Entry>,
}

fn hash(piece: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(piece);
    hasher.finish()
}

impl Counter {
    /// Adds `count` sightings of `piece`, whose length fits 32 bits.
    pub fn add(&mut self, piece: &[u8], count: u64) {
        let hashed = hash(piece);
        let arena = &mut self.arena;
        let found = self.table.find_mut(hashed, |entry| {
            entry.length as usize == piece.len() && &arena[entry.start..entry.start + piece.len()] == piece
        });
        if let Some(entry) = found {
            entry.count += count;
            return;
        }
        let entry = Entry { start: arena.len(), length: piece.len() as u32, count };
        arena.extend_from_slice(piece);
        self.table.insert_unique(hashed, entry, |entry| {
            hash(&arena[entry.start..entry.start + entry.length as usize])
        });
    }

    /// Distinct pieces so far.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Every piece with its count, in no fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.table.iter().map(|entry| (&self.arena[entry.start..entry.start + entry.length as usize], entry.count))
    }
}
