//! Borrows the strings of an Arrow array through the C data interface, without copying them.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyCapsuleMethods};
use std::ffi::{c_char, c_void, CStr};

/// The head of `struct ArrowSchema` of the Arrow C data interface; only `format` is read.
#[repr(C)]
struct ArrowSchema {
    format: *const c_char,
}

/// The head of `struct ArrowArray` of the Arrow C data interface.
#[repr(C)]
struct ArrowArray {
    length: i64,
    null_count: i64,
    offset: i64,
    n_buffers: i64,
    n_children: i64,
    buffers: *const *const c_void,
}

/// Strings of an array, alive as long as its capsules.
pub struct ArrowStrings {
    _schema: Py<PyCapsule>,
    _array: Py<PyCapsule>,
    spans: Vec<(*const u8, usize)>,
}

// SAFETY: the spans point into immutable buffers that the capsules keep alive.
unsafe impl Send for ArrowStrings {}
unsafe impl Sync for ArrowStrings {}

impl ArrowStrings {
    /// Reads an object with `__arrow_c_array__` whose type is `string` or `large_string`. Nulls count as empty.
    pub fn new(array: &Bound<'_, PyAny>) -> PyResult<Self> {
        let exported = array.call_method0("__arrow_c_array__")?;
        let (schema, capsule): (Bound<'_, PyCapsule>, Bound<'_, PyCapsule>) = exported.extract()?;
        let schema_pointer = schema.pointer_checked(Some(c"arrow_schema"))?.as_ptr() as *const ArrowSchema;
        let array_pointer = capsule.pointer_checked(Some(c"arrow_array"))?.as_ptr() as *const ArrowArray;
        // SAFETY: the capsules carry these names only for structs of this layout, which they own.
        let (format, view) = unsafe { (CStr::from_ptr((*schema_pointer).format), &*array_pointer) };
        let wide = match format.to_bytes() {
            b"u" => false,
            b"U" => true,
            other => {
                let name = String::from_utf8_lossy(other).into_owned();
                return Err(PyTypeError::new_err(format!("an Arrow array of strings is needed, not of format {name:?}")));
            }
        };
        let spans = unsafe { read_spans(view, wide) };
        for &(start, length) in &spans {
            // SAFETY: read_spans gives ranges of the data buffer.
            if std::str::from_utf8(unsafe { std::slice::from_raw_parts(start, length) }).is_err() {
                return Err(PyValueError::new_err("an Arrow string is not valid UTF-8"));
            }
        }
        Ok(ArrowStrings { _schema: schema.unbind(), _array: capsule.unbind(), spans })
    }

    /// The strings, borrowed.
    pub fn texts(&self) -> Vec<&str> {
        // SAFETY: checked to be UTF-8 in `new`; the buffers live as long as self.
        let text = |&(start, length): &(*const u8, usize)| unsafe {
            std::str::from_utf8_unchecked(std::slice::from_raw_parts(start, length))
        };
        self.spans.iter().map(text).collect()
    }
}

/// Ranges of the non-null strings.
///
/// SAFETY: `array` is a valid string array, with 64-bit offsets where `wide`.
unsafe fn read_spans(array: &ArrowArray, wide: bool) -> Vec<(*const u8, usize)> {
    if array.length == 0 {
        return Vec::new();
    }
    let buffers = std::slice::from_raw_parts(array.buffers, 3);
    let (validity, offsets, data) = (buffers[0] as *const u8, buffers[1], buffers[2] as *const u8);
    let offset = |index: usize| -> usize {
        if wide {
            *(offsets as *const i64).add(index) as usize
        } else {
            *(offsets as *const i32).add(index) as usize
        }
    };
    let first = array.offset as usize;
    (first..first + array.length as usize)
        .filter(|&index| validity.is_null() || (*validity.add(index / 8) >> (index % 8)) & 1 == 1)
        .filter(|&index| offset(index + 1) > offset(index))
        .map(|index| (data.add(offset(index)), offset(index + 1) - offset(index)))
        .collect()
}
