//! The certificate of the metrics listener: read again when it changes, and replaced without a restart.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::rustls::ServerConfig;
use tracing::{debug, error, info, warn};

use crate::config::tls_key;
use crate::handle::Handle;
use crate::tls::{Content, Server, ServerFiles, TlsError};

/// How often the files are looked at. By their content: a link that is turned to other files changes no file's time.
const INTERVAL: Duration = Duration::from_secs(5);
/// So many looks in a row must fail before it is said: a certificate and its key are not replaced in one moment.
const PATIENCE: u32 = 2;

/// What the metrics listener shows, if it speaks TLS.
#[derive(Debug)]
pub struct Certificates {
    handle: Handle,
    current: watch::Sender<Option<Current>>,
}

#[derive(Debug)]
struct Current {
    files: ServerFiles,
    content: Content,
    server: Server,
    /// Whether it was said that clients refuse it.
    complained: bool,
}

/// What was wrong with the files when they were looked at last.
struct Trouble {
    error: TlsError,
    /// How often in a row.
    times: u32,
}

impl Current {
    /// Reads the files. Blocks.
    fn read(files: ServerFiles) -> Result<Self, TlsError> {
        let content = files.read()?;
        let server = content.server()?;
        // The check of the settings has said it.
        let complained = server.valid.complaint(SystemTime::now()).is_some();
        Ok(Self { files, content, server, complained })
    }
}

impl Certificates {
    /// Reads what the settings of `handle` name. Blocks.
    ///
    /// # Errors
    /// [`TlsError`] where it is not good; it was when the settings were checked.
    pub fn load(handle: Handle) -> Result<Self, TlsError> {
        let current = handle.config().metrics_tls.clone().map(Current::read).transpose()?;
        let this = Self { handle, current: watch::Sender::new(None) };
        this.replace(current);
        Ok(this)
    }

    /// What new connections are served with; `None` is no TLS.
    pub(super) fn server(&self) -> Option<Arc<ServerConfig>> {
        self.current.borrow().as_ref().map(|current| current.server.config.clone())
    }

    /// Looks at the files from time to time, and when the settings change. What is not good is not taken.
    pub(super) async fn keep(&self) {
        let mut settings = self.handle.settings();
        // What is wrong, how often in a row that was so, and whether it was said.
        let mut trouble: Option<Trouble> = None;
        loop {
            tokio::select! {
                () = sleep(INTERVAL) => {}
                changed = settings.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let files = settings.borrow_and_update().metrics_tls.clone();
            let Some(files) = files else {
                trouble = None;
                if self.current.borrow().is_some() {
                    self.replace(None);
                    warn!("the metrics listener speaks no TLS any more: the settings say so");
                }
                continue;
            };
            let Some(read) = self.read(files).await else {
                // The runtime ends.
                return;
            };
            match read {
                Ok(new) => {
                    if trouble.take().is_some_and(|trouble| trouble.times >= PATIENCE) {
                        warn!("the certificate of the metrics listener can be used again");
                    }
                    if let Some(new) = new {
                        self.take(new);
                    }
                }
                Err(error) => {
                    let times = match &trouble {
                        Some(before) if before.error == error => before.times.saturating_add(1),
                        _ => 1,
                    };
                    let key = tls_key(error.part);
                    if times == PATIENCE {
                        error!(
                            "{key}: expected {}; the metrics listener goes on with what it read before",
                            error.expected
                        );
                    } else {
                        debug!("{key}: expected {}", error.expected);
                    }
                    trouble = Some(Trouble { error, times });
                }
            }
            self.look_at_validity();
        }
    }

    /// Reads the files: `Ok(None)` where they hold what is in use, `None` when the runtime ends.
    async fn read(&self, files: ServerFiles) -> Option<Result<Option<Current>, TlsError>> {
        let current = self.current.subscribe();
        let read = move || {
            let content = files.read()?;
            let is_same =
                |current: &Current| current.files == files && current.content.same_as(&content);
            if current.borrow().as_ref().is_some_and(is_same) {
                return Ok(None);
            }
            let server = content.server()?;
            Ok(Some(Current { files, content, server, complained: false }))
        };
        tokio::task::spawn_blocking(read).await.ok()
    }

    fn take(&self, new: Current) {
        info!("the metrics listener has a new certificate");
        self.replace(Some(new));
    }

    /// Says once of a certificate that clients refuse it, also where it expires while it is in use.
    fn look_at_validity(&self) {
        self.current.send_if_modified(|current| {
            let Some(current) = current.as_mut().filter(|current| !current.complained) else {
                return false;
            };
            if let Some(complaint) = current.server.valid.complaint(SystemTime::now()) {
                warn!("MetricsTlsCertificate {complaint}");
                current.complained = true;
            }
            false
        });
    }

    fn replace(&self, new: Option<Current>) {
        let expiry = new.as_ref().map(|current| current.server.valid.not_after);
        self.handle.set_certificate_expiry(expiry);
        self.current.send_replace(new);
    }
}
