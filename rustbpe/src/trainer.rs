//! Byte-pair encoding (Sennrich et al. 2016) over distinct pieces with their counts.
//!
//! The most frequent pair of neighbours is merged, again and again; among equals the smaller pair of ids wins, so the
//! result depends on nothing but the counts. Pair counts are kept up to date merge by merge, and a heap of possibly
//! stale counts is checked on the way out.

use crate::counter::Counter;
use crate::pretoken::Splitter;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub type Pair = (u32, u32);

/// Counts the pieces of many texts, then learns merges from them.
pub struct Trainer {
    splitter: Splitter,
    counters: Vec<Counter>,
}

impl Trainer {
    /// `threads` at least 1. Fails with a sentence where the pattern is not a regular expression.
    pub fn new(pattern: &str, threads: usize) -> Result<Self, String> {
        let counters = (0..threads.max(1)).map(|_| Counter::default()).collect();
        Ok(Trainer { splitter: Splitter::new(pattern)?, counters })
    }

    /// Splits and counts texts, each thread taking the next one when it is free; stops early once `cancelled`.
    pub fn feed(&mut self, texts: &[&str], cancelled: &AtomicBool) -> Result<(), String> {
        let next = AtomicUsize::new(0);
        let splitter = &self.splitter;
        std::thread::scope(|scope| {
            let workers: Vec<_> = self
                .counters
                .iter_mut()
                .map(|counter| {
                    let next = &next;
                    scope.spawn(move || -> Result<(), String> {
                        while !cancelled.load(Ordering::Relaxed) {
                            let Some(text) = texts.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                            splitter.split(text, |piece| counter.add(piece.as_bytes(), 1))?;
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a counting thread does not panic"))
        })
    }

    /// Distinct pieces, counted once per thread that met them.
    pub fn num_pieces(&self) -> usize {
        self.counters.iter().map(Counter::len).sum()
    }

    /// Learns up to `num_merges` merges; merge i makes id 256 + i. Fewer where no pair is left.
    ///
    /// `progress` counts the merges done. Returns what was learnt so far once `cancelled`.
    pub fn train(&mut self, num_merges: usize, progress: &AtomicUsize, cancelled: &AtomicBool) -> Vec<Pair> {
        let mut counters = self.counters.iter_mut();
        let total = counters.next().expect("at least one thread");
        for counter in counters {
            for (piece, count) in counter.iter() {
                total.add(piece, count);
            }
            *counter = Counter::default();
        }
        Merger::new(total).run(num_merges, progress, cancelled)
    }
}

/// The pieces as ids, with the counts and places of all pairs.
struct Merger {
    ids: Vec<u32>,
    starts: Vec<usize>,
    lengths: Vec<u32>,
    counts: Vec<i64>,
    pairs: FxHashMap<Pair, PairUse>,
    heap: BinaryHeap<(i64, Reverse<Pair>)>,
}

/// How often a pair occurs, and the pieces that may hold it (repeats and stale ones included).
#[derive(Default)]
struct PairUse {
    count: i64,
    pieces: Vec<u32>,
}

impl PairUse {
    /// Remembers a piece; pieces come in runs, so looking at the last one removes most repeats.
    fn remember(&mut self, piece: u32) {
        if self.pieces.last() != Some(&piece) {
            self.pieces.push(piece);
        }
    }
}

impl Merger {
    fn new(counter: &Counter) -> Self {
        let mut merger = Merger {
            ids: Vec::new(),
            starts: Vec::with_capacity(counter.len()),
            lengths: Vec::with_capacity(counter.len()),
            counts: Vec::with_capacity(counter.len()),
            pairs: FxHashMap::default(),
            heap: BinaryHeap::new(),
        };
        for (bytes, count) in counter.iter().filter(|(bytes, _)| bytes.len() > 1) {
            let piece = merger.starts.len() as u32;
            merger.starts.push(merger.ids.len());
            merger.lengths.push(bytes.len() as u32);
            merger.counts.push(count as i64);
            merger.ids.extend(bytes.iter().map(|&byte| byte as u32));
            for window in bytes.windows(2) {
                let entry = merger.pairs.entry((window[0] as u32, window[1] as u32)).or_default();
                entry.count += count as i64;
                entry.remember(piece);
            }
        }
        merger.heap = merger.pairs.iter().map(|(&pair, entry)| (entry.count, Reverse(pair))).collect();
        merger
    }

    fn run(mut self, num_merges: usize, progress: &AtomicUsize, cancelled: &AtomicBool) -> Vec<Pair> {
        let mut merges = Vec::with_capacity(num_merges);
        while merges.len() < num_merges && !cancelled.load(Ordering::Relaxed) {
            let Some(pair) = self.most_frequent() else { break };
            self.merge(pair, 256 + merges.len() as u32);
            merges.push(pair);
            progress.store(merges.len(), Ordering::Relaxed);
        }
        merges
    }

    /// Pops until the top of the heap is up to date. Counts of pairs only fall once they are in the heap.
    fn most_frequent(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.heap.pop() {
            let current = self.pairs.get(&pair).map_or(0, |entry| entry.count);
            if current == count {
                return Some(pair);
            }
            if current > 0 {
                self.heap.push((current, Reverse(pair)));
            } else {
                self.pairs.remove(&pair);
            }
        }
        None
    }

    /// Replaces every occurrence of `pair` by `new` and updates the counts of the neighbours.
    fn merge(&mut self, pair: Pair, new: u32) {
        let mut pieces = self.pairs.remove(&pair).expect("a pair that was counted").pieces;
        pieces.sort_unstable();
        pieces.dedup();
        let mut born: FxHashMap<Pair, PairUse> = FxHashMap::default();
        for piece in pieces {
            let (start, length) = (self.starts[piece as usize], self.lengths[piece as usize] as usize);
            let count = self.counts[piece as usize];
            let ids = &mut self.ids[start..start + length];
            let (mut read, mut write) = (0, 0);
            while read < length {
                if read + 1 == length || (ids[read], ids[read + 1]) != pair {
                    ids[write] = ids[read];
                    read += 1;
                    write += 1;
                    continue;
                }
                if write > 0 {
                    let before = ids[write - 1];
                    change(&mut self.pairs, &mut born, (before, pair.0), -count, new, piece);
                    change(&mut self.pairs, &mut born, (before, new), count, new, piece);
                }
                if read + 2 < length {
                    let after = ids[read + 2];
                    change(&mut self.pairs, &mut born, (pair.1, after), -count, new, piece);
                    change(&mut self.pairs, &mut born, (new, after), count, new, piece);
                }
                ids[write] = new;
                read += 2;
                write += 1;
            }
            self.lengths[piece as usize] = write as u32;
        }
        for (pair, entry) in born {
            if entry.count > 0 {
                self.heap.push((entry.count, Reverse(pair)));
                self.pairs.insert(pair, entry);
            }
        }
    }
}

/// Adds `count` to a pair: to the born ones where it holds the new id, else to the old ones, which only fall.
fn change(
    pairs: &mut FxHashMap<Pair, PairUse>,
    born: &mut FxHashMap<Pair, PairUse>,
    pair: Pair,
    count: i64,
    new: u32,
    piece: u32,
) {
    if pair.0 == new || pair.1 == new {
        let entry = born.entry(pair).or_default();
        entry.count += count;
        entry.remember(piece);
    } else if let Some(entry) = pairs.get_mut(&pair) {
        entry.count += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pretoken::GPT4_STYLE;

    fn learn(texts: &[&str], num_merges: usize, threads: usize) -> Vec<Pair> {
        let go = AtomicBool::new(false);
        let mut trainer = Trainer::new(GPT4_STYLE, threads).unwrap();
        trainer.feed(texts, &go).unwrap();
        trainer.train(num_merges, &AtomicUsize::new(0), &go)
    }

    #[test]
    fn the_most_frequent_pair_is_merged_and_ties_go_to_the_smaller() {
        assert_eq!(learn(&["aaab", "aaab"], 3, 1), [(97, 97), (97, 98), (256, 257)]);
        assert_eq!(learn(&["zy", "ab"], 2, 1), [(97, 98), (122, 121)]);
    }

    #[test]
    fn training_ends_where_no_pair_is_left() {
        assert_eq!(learn(&["ab"], 10, 1), [(97, 98)]);
        assert!(learn(&[], 10, 2).is_empty());
    }

    #[test]
    fn threads_do_not_change_the_result() {
        let texts: Vec<String> = (0..500).map(|i| format!("text {} of many, {}", i, i * i % 97)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let one = learn(&texts, 300, 1);
        assert_eq!(one, learn(&texts, 300, 2));
        assert_eq!(one, learn(&texts, 300, 7));
    }
}
