//! The Windows event log. A service has no stderr, so its fatal errors go to this log, which the Event Viewer shows.
#![allow(unsafe_code, reason = "no maintained library writes to the event log")]

use std::io;
use std::ptr;

use windows_registry::LOCAL_MACHINE;
use windows_sys::Win32::System::EventLog::{
    DeregisterEventSource, EVENTLOG_ERROR_TYPE, RegisterEventSourceW, ReportEventW,
};

use super::NAME;

/// The registry key in which Windows looks for the sources of events.
const SOURCES_KEY: &str = r"SYSTEM\CurrentControlSet\Services\EventLog\Application";
/// A message file of Windows whose messages 1 to 1000 are "%1", so that an event shows exactly its own text.
const MESSAGE_FILE: &str = r"%SystemRoot%\System32\EventCreate.exe";
const EVENT_ID: u32 = 1;
/// Errors, warnings and information.
const SUPPORTED_TYPES: u32 = 7;
/// The longest text of an event, in UTF-16 units: a little less than what Windows accepts.
const MAX_TEXT: usize = 31_000;

/// Registers the source, so that the Event Viewer shows the text of the service's events.
pub(super) fn register() -> windows_registry::Result<()> {
    let source = LOCAL_MACHINE.create(format!(r"{SOURCES_KEY}\{NAME}"))?;
    source.set_expand_string("EventMessageFile", MESSAGE_FILE)?;
    source.set_u32("TypesSupported", SUPPORTED_TYPES)
}

/// Undoes [`register`]. It is not an error if the source is not registered.
pub(super) fn unregister() {
    let _ = LOCAL_MACHINE.remove_tree(format!(r"{SOURCES_KEY}\{NAME}"));
}

/// Writes an error event.
///
/// # Errors
/// The system's error.
pub fn error(message: &str) -> io::Result<()> {
    let source = to_utf16(NAME);
    let text: Vec<u16> =
        message.encode_utf16().filter(|unit| *unit != 0).take(MAX_TEXT).chain([0]).collect();
    // SAFETY: `source` is zero-terminated and outlives the call.
    let log = unsafe { RegisterEventSourceW(ptr::null(), source.as_ptr()) };
    if log.is_null() {
        return Err(io::Error::last_os_error());
    }
    let texts = [text.as_ptr()];
    // SAFETY: the handle is open; one zero-terminated string is passed, which outlives the call; no data is passed.
    let written = unsafe {
        ReportEventW(
            log,
            EVENTLOG_ERROR_TYPE,
            0,
            EVENT_ID,
            ptr::null_mut(),
            1,
            0,
            texts.as_ptr(),
            ptr::null(),
        )
    };
    let result = if written == 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: the handle is open, and is not used afterwards.
    unsafe { DeregisterEventSource(log) };
    result
}

fn to_utf16(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}
