//! What others may see of this process's memory, where keys are: nothing, not even after a crash.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Keeps this process's memory out of core dumps and away from debuggers without CAP_SYS_PTRACE. It does so in three
/// ways, since each can be undone or bypassed from outside: a limit that a service manager may have set, a filter of
/// what is dumped, and the flag that also forbids dumps to programs (`core(5)`, `prctl(2)`).
///
/// # Errors
/// The kernel refuses.
pub fn keep_private() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // Excludes every mapping, as MADV_DONTDUMP does for single pages. Some containers have no /proc.
    let _ = std::fs::write("/proc/self/coredump_filter", "0");
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
