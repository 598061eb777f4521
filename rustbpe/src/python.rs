//! The extension module `nanochat._rustbpe`: runs the trainer beside the interpreter, so that Ctrl-C is heard.

use crate::arrow::ArrowStrings;
use crate::pretoken::Splitter;
use crate::trainer::{Pair, Trainer as PureTrainer};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(50);

/// Counts texts and learns merges.
#[pyclass]
struct Trainer {
    inner: PureTrainer,
}

#[pymethods]
impl Trainer {
    #[new]
    #[pyo3(signature = (pattern, num_threads = None))]
    fn new(pattern: &str, num_threads: Option<usize>) -> PyResult<Self> {
        let available = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let threads = num_threads.unwrap_or(available).max(1);
        Ok(Trainer { inner: PureTrainer::new(pattern, threads).map_err(PyValueError::new_err)? })
    }

    /// Count the pieces of a list of str.
    fn feed(&mut self, py: Python<'_>, texts: Vec<PyBackedStr>) -> PyResult<()> {
        let borrowed: Vec<&str> = texts.iter().map(|text| &**text).collect();
        self.count(py, &borrowed)
    }

    /// Count the pieces of an Arrow array of strings, without copying it.
    fn feed_arrow(&mut self, py: Python<'_>, array: &Bound<'_, PyAny>) -> PyResult<()> {
        let strings = ArrowStrings::new(array)?;
        self.count(py, &strings.texts())
    }

    /// Distinct pieces so far, counted once per thread that met them.
    #[getter]
    fn num_pieces(&self) -> usize {
        self.inner.num_pieces()
    }

    /// Learn up to num_merges merges; progress(done) is called about twenty times a second.
    #[pyo3(signature = (num_merges, progress = None))]
    fn train(&mut self, py: Python<'_>, num_merges: usize, progress: Option<Py<PyAny>>) -> PyResult<Vec<Pair>> {
        let done = AtomicUsize::new(0);
        let inner = &mut self.inner;
        let merges = watch(
            py,
            |cancelled| inner.train(num_merges, &done, cancelled),
            |py| match &progress {
                Some(call) => call.call1(py, (done.load(Ordering::Relaxed),)).map(|_| ()),
                None => Ok(()),
            },
        )?;
        if let Some(call) = &progress {
            call.call1(py, (merges.len(),))?;
        }
        Ok(merges)
    }
}

impl Trainer {
    fn count(&mut self, py: Python<'_>, texts: &[&str]) -> PyResult<()> {
        let inner = &mut self.inner;
        watch(py, |cancelled| inner.feed(texts, cancelled), |_| Ok(()))?.map_err(PyRuntimeError::new_err)
    }
}

/// Runs `work` on another thread without the GIL; this thread handles signals and calls `tick` meanwhile.
///
/// A KeyboardInterrupt, or an error of `tick`, cancels the work and is raised once it has stopped.
fn watch<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&AtomicBool) -> T + Send,
    mut tick: impl FnMut(Python<'_>) -> PyResult<()>,
) -> PyResult<T> {
    let cancelled = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| work(&cancelled));
        let mut failure = None;
        while !worker.is_finished() {
            py.detach(|| {
                // Short waits at first, so that small jobs return at once.
                for _ in 0..50 {
                    if worker.is_finished() {
                        return;
                    }
                    std::thread::sleep(POLL / 50);
                }
            });
            if failure.is_none() {
                if let Err(error) = py.check_signals().and_then(|()| tick(py)) {
                    cancelled.store(true, Ordering::Relaxed);
                    failure = Some(error);
                }
            }
        }
        let result = worker.join().map_err(|_| PyRuntimeError::new_err("the BPE worker thread panicked"))?;
        match failure {
            Some(error) => Err(error),
            None => Ok(result),
        }
    })
}

/// The pieces of one text.
#[pyfunction]
fn split(text: &str, pattern: &str) -> PyResult<Vec<String>> {
    let mut pieces = Vec::new();
    Splitter::new(pattern)
        .and_then(|splitter| splitter.split(text, |piece| pieces.push(piece.to_string())))
        .map_err(PyValueError::new_err)?;
    Ok(pieces)
}

#[pymodule]
fn _rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Trainer>()?;
    module.add_function(wrap_pyfunction!(split, module)?)?;
    module.add("GPT4_STYLE_PATTERN", crate::pretoken::GPT4_STYLE)?;
    Ok(())
}
