//! What events are called, in the contract's words.

use ctwatch_ebpf::Event;

/// Its field in an object of `live --json`, with the reason or cause after a dot.
pub const fn field(event: Event) -> &'static str {
    match event {
        Event::Insert => "insert",
        Event::InsertNetlink => "insert_netlink",
        Event::ClashResolve => "clash_resolve",
        Event::ClashReplyOnly => "clash_reply_only",
        Event::FailedClash => "insert_failed.clash",
        Event::FailedChaintoolong => "insert_failed.chaintoolong",
        Event::FailedDying => "insert_failed.dying",
        Event::FailedOther => "insert_failed.other",
        Event::DropTableFull => "drop.table_full",
        Event::DropNoMemory => "drop.no_memory",
        Event::DeleteTimeout => "delete.timeout",
        Event::DeleteClosed => "delete.closed",
        Event::DeleteEarlyDrop => "delete.early_drop",
        Event::DeletePressure => "delete.pressure",
        Event::DeleteNetlink => "delete.netlink",
        Event::DeleteCleanup => "delete.cleanup",
        Event::DeleteOther => "delete.other",
    }
}

/// What its field ends in: the reason or cause, or the name of an event that has none.
pub fn reason(event: Event) -> &'static str {
    let field = field(event);
    field.split_once('.').map_or(field, |(_, reason)| reason)
}
