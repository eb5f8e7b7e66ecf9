//! The Windows event log: the last words of a service, which has no stderr, for those who look into the Event Viewer.
#![allow(unsafe_code, reason = "no kept library writes to the event log")]

use std::io;
use std::ptr;

use windows_registry::LOCAL_MACHINE;
use windows_sys::Win32::System::EventLog::{
    DeregisterEventSource, EVENTLOG_ERROR_TYPE, RegisterEventSourceW, ReportEventW,
};

use super::NAME;

/// Where Windows looks for the texts of an event.
const SOURCES: &str = r"SYSTEM\CurrentControlSet\Services\EventLog\Application";
/// A file of Windows that has, for the numbers 1 to 1000, the text "%1": what the event brings stands for itself.
const TEXTS: &str = r"%SystemRoot%\System32\EventCreate.exe";
const NUMBER: u32 = 1;
/// Errors, warnings and information.
const TYPES: u32 = 7;
/// Longest text of an event that Windows takes, in UTF-16 units, and somewhat less.
const LONGEST: usize = 31_000;

/// Lets the Event Viewer show the service's events as they are written.
pub(super) fn register() -> windows_registry::Result<()> {
    let source = LOCAL_MACHINE.create(format!(r"{SOURCES}\{NAME}"))?;
    source.set_expand_string("EventMessageFile", TEXTS)?;
    source.set_u32("TypesSupported", TYPES)
}

/// Takes that back. Where it is not there, it is well.
pub(super) fn unregister() {
    let _ = LOCAL_MACHINE.remove_tree(format!(r"{SOURCES}\{NAME}"));
}

/// Writes an error.
///
/// # Errors
/// What the system says.
pub fn error(message: &str) -> io::Result<()> {
    let source = wide(NAME);
    let text: Vec<u16> =
        message.encode_utf16().filter(|unit| *unit != 0).take(LONGEST).chain([0]).collect();
    // SAFETY: `source` ends with a zero and outlives the call.
    let log = unsafe { RegisterEventSourceW(ptr::null(), source.as_ptr()) };
    if log.is_null() {
        return Err(io::Error::last_os_error());
    }
    let texts = [text.as_ptr()];
    // SAFETY: the handle is open; one string is passed, it ends with a zero and outlives the call; there is no data.
    let written = unsafe {
        ReportEventW(
            log,
            EVENTLOG_ERROR_TYPE,
            0,
            NUMBER,
            ptr::null_mut(),
            1,
            0,
            texts.as_ptr(),
            ptr::null(),
        )
    };
    let result = if written == 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: the handle is open, and not used any more.
    unsafe { DeregisterEventSource(log) };
    result
}

fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}
