//! The certificate of the metrics listener, which is read again when its files change and is replaced without a restart.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::rustls::ServerConfig;
use tracing::{debug, error, info, warn};

use crate::config::tls_part_setting;
use crate::handle::Handle;
use crate::tls::{ServerFiles, ServerPem, TlsError, TlsServerConfig};

/// How often the files are read. Their content is compared, not their times: pointing a symbolic link at other files
/// changes the time of none of them.
const READ_INTERVAL: Duration = Duration::from_secs(5);
/// How many reads in a row must fail before an error is logged: a certificate and its key are not replaced atomically.
const FAILURES_BEFORE_ERROR: u32 = 2;

/// The certificate of the metrics listener, if that uses TLS.
#[derive(Debug)]
pub struct Certificates {
    handle: Handle,
    current: watch::Sender<Option<CurrentCertificate>>,
}

#[derive(Debug)]
struct CurrentCertificate {
    files: ServerFiles,
    content: ServerPem,
    server: TlsServerConfig,
    /// Whether a warning has been logged that clients will refuse it.
    has_warned: bool,
}

/// Why the files could not be used when they were last read.
struct ReadFailure {
    error: TlsError,
    /// How many reads in a row have failed with this error.
    times: u32,
}

impl CurrentCertificate {
    /// Reads the files. Blocks.
    fn read(files: ServerFiles) -> Result<Self, TlsError> {
        let content = files.read()?;
        let server = content.build_server()?;
        // Validating the settings has already logged this warning.
        let has_warned = server.validity.problem_at(SystemTime::now()).is_some();
        Ok(Self { files, content, server, has_warned })
    }
}

impl Certificates {
    /// Reads the files that the settings of `handle` name. Blocks.
    ///
    /// # Errors
    /// [`TlsError`] if they have become invalid since the settings were checked.
    pub fn load(handle: Handle) -> Result<Self, TlsError> {
        let current = handle.config().metrics_tls().map(CurrentCertificate::read).transpose()?;
        let this = Self { handle, current: watch::Sender::new(None) };
        this.replace(current);
        Ok(this)
    }

    /// The TLS configuration for new connections; `None` is plain HTTP.
    pub(super) fn server_config(&self) -> Option<Arc<ServerConfig>> {
        self.current.borrow().as_ref().map(|current| current.server.config.clone())
    }

    /// Reads the files periodically and when the settings change, for ever. Invalid files change nothing.
    pub(super) async fn keep_current(&self) {
        let mut settings = self.handle.settings().subscribe();
        let mut failure: Option<ReadFailure> = None;
        loop {
            tokio::select! {
                () = sleep(READ_INTERVAL) => {}
                changed = settings.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let files = settings.borrow_and_update().metrics_tls();
            let Some(files) = files else {
                failure = None;
                if self.current.borrow().is_some() {
                    self.replace(None);
                    warn!("the metrics listener no longer uses TLS, as the settings now say");
                }
                continue;
            };
            let Some(read) = self.read(files).await else {
                // The runtime is shutting down.
                return;
            };
            failure = self.apply(read, failure);
            self.check_validity();
        }
    }

    /// Adopts the certificate that was read, or keeps the current one. Returns the failure, if there is one, with
    /// the number of failures in a row, which continues that of `before` if the error is the same.
    fn apply(
        &self,
        read: Result<Option<CurrentCertificate>, TlsError>,
        before: Option<ReadFailure>,
    ) -> Option<ReadFailure> {
        let error = match read {
            Ok(new) => {
                if before.is_some_and(|failure| failure.times >= FAILURES_BEFORE_ERROR) {
                    warn!("the certificate of the metrics listener can be used again");
                }
                if let Some(new) = new {
                    info!("the metrics listener has a new certificate");
                    self.replace(Some(new));
                }
                return None;
            }
            Err(error) => error,
        };
        let times = match &before {
            Some(before) if before.error == error => before.times.saturating_add(1),
            _ => 1,
        };
        let (key, expected) = (tls_part_setting(error.part), &error.expected);
        if times == FAILURES_BEFORE_ERROR {
            error!(
                "{key}: expected {expected}; the metrics listener continues with what it read before"
            );
        } else {
            debug!("{key}: expected {expected}");
        }
        Some(ReadFailure { error, times })
    }

    /// Reads the files. `Ok(None)` if their content is in use already; `None` if the runtime is shutting down.
    async fn read(
        &self,
        files: ServerFiles,
    ) -> Option<Result<Option<CurrentCertificate>, TlsError>> {
        let current = self.current.subscribe();
        let read = move || {
            let content = files.read()?;
            let is_same = |current: &CurrentCertificate| {
                current.files == files && current.content.is_same_as(&content)
            };
            if current.borrow().as_ref().is_some_and(is_same) {
                return Ok(None);
            }
            let server = content.build_server()?;
            Ok(Some(CurrentCertificate { files, content, server, has_warned: false }))
        };
        tokio::task::spawn_blocking(read).await.ok()
    }

    /// Warns once if clients will refuse the certificate, including when it expires while it is in use.
    fn check_validity(&self) {
        self.current.send_if_modified(|current| {
            let Some(current) = current.as_mut().filter(|current| !current.has_warned) else {
                return false;
            };
            if let Some(problem) = current.server.validity.problem_at(SystemTime::now()) {
                warn!("MetricsTlsCertificate {problem}");
                current.has_warned = true;
            }
            false
        });
    }

    fn replace(&self, new: Option<CurrentCertificate>) {
        let expiry = new.as_ref().map(|current| current.server.validity.not_after);
        self.handle.set_certificate_expiry(expiry);
        self.current.send_replace(new);
    }
}
