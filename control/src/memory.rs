//! What others may see of this process's memory, in which keys lie: nothing, not even after a crash.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Keeps the memory of this process from core dumps and from debuggers without CAP_SYS_PTRACE. Three times, since each
/// can be undone or passed by from outside: a limit that a service manager set, a filter of what is dumped, and the
/// flag that forbids dumps to programs too (`core(5)`, `prctl(2)`).
///
/// # Errors
/// The kernel refuses.
pub fn keep_private() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // No mapping at all: for the whole process what MADV_DONTDUMP is for a page. Some containers have no /proc.
    let _ = std::fs::write("/proc/self/coredump_filter", "0");
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
