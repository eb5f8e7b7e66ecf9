//! The part of a Kubernetes node that holds its public address.

use std::fmt;
use std::str::FromStr;

/// The part of a Kubernetes node that holds its public address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressSource {
    /// The first address of the type `ExternalIP`.
    ExternalIp,
    /// The annotation with this key.
    Annotation(String),
    /// The label with this key.
    Label(String),
}

impl FromStr for AddressSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            None if text == "external-ip" => Ok(Self::ExternalIp),
            Some(("annotation", key)) if !key.is_empty() => Ok(Self::Annotation(key.to_owned())),
            Some(("label", key)) if !key.is_empty() => Ok(Self::Label(key.to_owned())),
            _ => Err("expected external-ip, annotation=KEY or label=KEY".into()),
        }
    }
}

impl fmt::Display for AddressSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExternalIp => f.write_str("address of the type ExternalIP"),
            Self::Annotation(key) => write!(f, "annotation {key}"),
            Self::Label(key) => write!(f, "label {key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_source_is_parsed_from_the_command_line() {
        assert_eq!("external-ip".parse(), Ok(AddressSource::ExternalIp));
        let annotation = AddressSource::Annotation("aspia-relay/address".into());
        assert_eq!("annotation=aspia-relay/address".parse(), Ok(annotation));
        assert_eq!("label=a=b".parse(), Ok(AddressSource::Label("a=b".into())));
        for wrong in ["", "internal-ip", "annotation", "annotation=", "label", "External-IP"] {
            assert!(wrong.parse::<AddressSource>().is_err(), "{wrong}");
        }
    }
}
