//! The certificate and the private key of the metrics listener, which are loaded to verify that they are valid.

use std::time::SystemTime;

use crate::tls::{PemSource, ServerFiles, TlsError, TlsPart};

use super::advice;
use super::provenance::Provenance;
use super::raw::RawSettings;
use super::report::ConfigReport;
use super::settings::{Draft, SettingKey, shown_pem};
use super::sources::Sources;

/// The setting that provides a part of the TLS configuration.
pub fn tls_part_setting(part: TlsPart) -> SettingKey {
    match part {
        TlsPart::Certificate => SettingKey::MetricsTlsCertificate,
        TlsPart::PrivateKey => SettingKey::MetricsTlsPrivateKey,
        TlsPart::ClientCa | TlsPart::ServerCa => SettingKey::MetricsTlsClientCa,
    }
}

/// Loads the files, if there are any, and notes what is wrong with them.
pub(super) fn try_load(
    draft: &Draft,
    raw: &RawSettings,
    sources: &Sources,
    report: &mut ConfigReport,
) {
    let (Some(Some(certificate)), Some(Some(private_key)), Some(client_ca)) = (
        &draft.metrics_tls_certificate,
        &draft.metrics_tls_private_key,
        &draft.metrics_tls_client_ca,
    ) else {
        return;
    };
    let files = ServerFiles {
        certificate: certificate.clone(),
        private_key: private_key.clone(),
        client_ca: client_ca.clone(),
    };
    match files.load() {
        Ok(server) => {
            if let Some(problem) = server.validity.problem_at(SystemTime::now()) {
                report.add_warning(&format!("MetricsTlsCertificate {problem}"));
            }
            // The file could be read, so the text is a path and not part of a key, which must not be shown.
            if let PemSource::File(path) = &files.private_key {
                report.replace_value(SettingKey::MetricsTlsPrivateKey, &path.display().to_string());
            }
        }
        Err(error) => note_error(error, raw, sources, report),
    }
}

fn note_error(error: TlsError, raw: &RawSettings, sources: &Sources, report: &mut ConfigReport) {
    let key = tls_part_setting(error.part);
    let value = raw.get(key);
    let mut expected = error.expected;
    if let Some(PemSource::File(path)) = value.map(|value| PemSource::new(&value.text))
        && let Err(error) = std::fs::File::open(&path)
    {
        expected += &advice::for_unreadable_file(&error, &path, sources);
    }
    let shown = value.and_then(|value| shown_pem(&value.text, key.setting().is_secret));
    let source = value.map_or(Provenance::NotSet, |value| value.source.clone());
    report.add_problem(key, shown.map(ToOwned::to_owned), source, expected);
}
