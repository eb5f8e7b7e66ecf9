//! The metric that says when the certificate of the metrics listener expires.

use std::time::Duration;

use prometheus::{IntGauge, Registry};

/// A gauge that exists only while there is a certificate: without one, any value would raise an alert.
pub(crate) struct CertificateExpiry {
    gauge: IntGauge,
    registry: Registry,
}

impl CertificateExpiry {
    pub(crate) fn new(registry: Registry) -> prometheus::Result<Self> {
        let gauge = IntGauge::new(
            "aspia_relay_tls_certificate_expiry_timestamp_seconds",
            "When the certificate of the metrics listener expires, in seconds since 1970; absent without TLS.",
        )?;
        Ok(Self { gauge, registry })
    }

    /// Sets the expiry, as the time since 1970; `None` without a certificate.
    pub(super) fn set(&self, expiry: Option<Duration>) {
        let gauge = Box::new(self.gauge.clone());
        match expiry {
            Some(expiry) => {
                self.gauge.set(i64::try_from(expiry.as_secs()).unwrap_or(i64::MAX));
                // Fails if the gauge is already registered.
                let _ = self.registry.register(gauge);
            }
            None => {
                let _ = self.registry.unregister(gauge);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_certificate_there_is_no_metric() {
        let registry = Registry::new();
        let expiry = CertificateExpiry::new(registry.clone()).unwrap();
        assert!(registry.gather().is_empty());
        for seconds in [7, 8] {
            expiry.set(Some(Duration::from_secs(seconds)));
            let value = registry.gather()[0].get_metric()[0].get_gauge().get_value();
            assert!((value - seconds as f64).abs() < 0.5, "{value}");
        }
        expiry.set(None);
        assert!(registry.gather().is_empty());
    }
}
