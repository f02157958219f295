//! Which calls of a store go wrong, and how.

/// The kind of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallKind {
    /// [`Store::put`](crate::Store::put)
    Put,
    /// [`Store::create`](crate::Store::create)
    Create,
    /// [`ObjectWriter::write`](crate::ObjectWriter::write)
    Write,
    /// [`ObjectWriter::finish`](crate::ObjectWriter::finish)
    Finish,
    /// [`ObjectWriter::abort`](crate::ObjectWriter::abort)
    Abort,
    /// [`Store::get`](crate::Store::get)
    Get,
    /// [`Store::get_range`](crate::Store::get_range)
    GetRange,
    /// [`Store::get_tail`](crate::Store::get_tail)
    GetTail,
    /// [`Store::head`](crate::Store::head)
    Head,
    /// [`Store::list_level`](crate::Store::list_level)
    ListLevel,
    /// [`Store::list_page`](crate::Store::list_page)
    ListPage,
    /// [`Store::delete`](crate::Store::delete)
    Delete,
}

/// Which calls a fault hits: of those that `kind` and `path_contains` let through, `times` ones
/// from the `nth` on, counted from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct When {
    /// Only calls of this kind.
    pub kind: Option<CallKind>,
    /// Only calls whose path (or prefix) contains this text.
    pub path_contains: Option<String>,
    /// How many matching calls pass before.
    pub nth: usize,
    /// How many matching calls are hit; `usize::MAX` for an outage without end.
    pub times: usize,
}

impl When {
    /// The `nth` call of all, counted from 0.
    pub fn call(nth: usize) -> Self {
        Self { kind: None, path_contains: None, nth, times: 1 }
    }

    /// The `nth` call of a kind, counted from 0.
    pub fn kind(kind: CallKind, nth: usize) -> Self {
        Self { kind: Some(kind), path_contains: None, nth, times: 1 }
    }

    /// The `nth` call about a path that contains a text, counted from 0.
    pub fn path(contains: &str, nth: usize) -> Self {
        Self { kind: None, path_contains: Some(contains.to_owned()), nth, times: 1 }
    }

    /// The same, and all matching calls after it.
    pub fn onwards(self) -> Self {
        Self { times: usize::MAX, ..self }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The call fails and nothing was done.
    FailBefore,
    /// The call is done and then reported as failed: the reply is lost.
    FailAfter,
    /// The call is begun and breaks off: a write leaves nothing visible, a delete deletes nothing.
    Tear,
    /// The store stops answering: the call never returns.
    Stall,
    /// The store says that there is no room. Reads fail instead.
    Full,
    /// The store refuses.
    Deny,
    /// A lying store. It says that it was done, and nothing was: a `put` or `finish` stores
    /// nothing, a `write` drops the bytes, a `delete` deletes nothing. A `create` fails.
    /// A read says that the object is not there, a listing is empty.
    Pretend,
    /// A lying store: what is written (`put`, `finish`, `write`) loses its second half, what is
    /// read comes back without it where the contract lets a reader see that (`get`, `get_tail`:
    /// fewer bytes; `get_range`: fewer bytes than asked for; `head`: half the size; listings:
    /// half the entries).
    Truncate,
    /// A lying store: one bit in the middle of what is written or read is flipped; `head` and
    /// listings say a size one greater.
    Corrupt,
}

/// One fault: when, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The calls it hits.
    pub when: When,
    /// What happens to them.
    pub what: What,
}

/// A call as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What was called.
    pub kind: CallKind,
    /// The object, or the prefix of a listing (empty for the whole store).
    pub path: String,
    /// The fault that hit it.
    pub fault: Option<What>,
}

/// Faults with the calls counted so far. The first fault that hits a call is the one that happens.
#[derive(Debug)]
pub(super) struct Plan {
    /// Each with the number of calls that matched it so far.
    faults: Vec<(Fault, usize)>,
    calls: Vec<Call>,
}

impl Plan {
    pub(super) fn new(faults: Vec<Fault>) -> Self {
        Self { faults: faults.into_iter().map(|fault| (fault, 0)).collect(), calls: Vec::new() }
    }

    pub(super) fn add(&mut self, fault: Fault) {
        self.faults.push((fault, 0));
    }

    pub(super) fn clear(&mut self) {
        self.faults.clear();
    }

    pub(super) fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// Notes a call and says what happens to it.
    pub(super) fn note(&mut self, kind: CallKind, path: &str) -> Option<What> {
        let mut hit = None;
        for (fault, seen) in &mut self.faults {
            let when = &fault.when;
            let matches = when.kind.is_none_or(|only| only == kind)
                && when.path_contains.as_ref().is_none_or(|text| path.contains(text.as_str()));
            if matches {
                let since = seen.checked_sub(when.nth);
                if since.is_some_and(|since| since < when.times) && hit.is_none() {
                    hit = Some(fault.what);
                }
                *seen += 1;
            }
        }
        self.calls.push(Call { kind, path: path.to_owned(), fault: hit });
        hit
    }
}
