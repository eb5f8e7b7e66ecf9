//! Permissions: the privileges of the service, and who may access its directories and files.
//!
//! Its directories are in places where ordinary users may create directories, too (`C:\ProgramData`,
//! `C:\Windows\Temp`). An existing directory is therefore only accepted if an administrator or the system owns it, and
//! a link never is: a user could have created it so that the administrator who installs the service grants access to
//! its target.
#![allow(
    unsafe_code,
    reason = "no maintained library sets permissions or limits privileges on Windows"
)]

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::ffi::OsStrExt;
use std::os::windows::fs::{MetadataExt, OpenOptionsExt};
use std::os::windows::io::AsRawHandle;
use std::path::Path;
use std::ptr;

use windows_service::service::Service;
use windows_sys::Win32::Foundation::{ERROR_ALREADY_EXISTS, ERROR_SUCCESS, HANDLE, LocalFree};
use windows_sys::Win32::Security::Authorization::{
    ConvertStringSecurityDescriptorToSecurityDescriptorW, ConvertStringSidToSidW,
    EXPLICIT_ACCESS_W, GRANT_ACCESS, GetSecurityInfo, NO_MULTIPLE_TRUSTEE, SDDL_REVISION_1,
    SE_FILE_OBJECT, SetEntriesInAclW, SetSecurityInfo, TRUSTEE_IS_SID, TRUSTEE_IS_UNKNOWN,
    TRUSTEE_W,
};
use windows_sys::Win32::Security::{
    ACL, DACL_SECURITY_INFORMATION, EqualSid, GetTokenInformation, INHERIT_ONLY_ACE,
    IsWellKnownSid, NO_INHERITANCE, OBJECT_INHERIT_ACE, OWNER_SECURITY_INFORMATION, PSID,
    SECURITY_ATTRIBUTES, TOKEN_USER, TokenUser, WinBuiltinAdministratorsSid, WinLocalSystemSid,
};
use windows_sys::Win32::Storage::FileSystem::{
    CreateDirectoryW, DELETE, FILE_ADD_FILE, FILE_ATTRIBUTE_REPARSE_POINT,
    FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT, FILE_GENERIC_EXECUTE,
    FILE_GENERIC_READ, FILE_GENERIC_WRITE, FILE_READ_ATTRIBUTES, READ_CONTROL, WRITE_DAC,
};
use windows_sys::Win32::System::Services::{
    ChangeServiceConfig2W, SERVICE_CONFIG_REQUIRED_PRIVILEGES_INFO,
    SERVICE_REQUIRED_PRIVILEGES_INFOW,
};

/// The SID of the service's account, which Windows computes from the name of the service: the SHA-1 of the name in upper
/// case.
const SERVICE: &str = "S-1-5-80-620634200-3938320152-2731559384-36916927-1525748724";

/// The one privilege that the service keeps, which all users have: to open files in directories that they may not list.
const PRIVILEGE: &str = "SeChangeNotifyPrivilege";

/// The SID that stands for the creator of a file in inherited permissions.
const CREATOR: &str = "S-1-3-0";

const READ: u32 = FILE_GENERIC_READ | FILE_GENERIC_EXECUTE;
const MODIFY: u32 = READ | FILE_GENERIC_WRITE | DELETE;

/// Rights of an account on a directory or a file.
#[derive(Debug, Clone, Copy)]
struct AccessGrant {
    /// The SID of the account.
    to: &'static str,
    rights: u32,
    /// Whether the rights are for the files in a directory instead of the directory itself.
    is_for_files: bool,
}

/// Rights on the configuration file and on its directory. The directory also holds files of other Aspia programs, with
/// secrets, to which the service gets no access.
const CONFIGURATION: &[AccessGrant] =
    &[AccessGrant { to: SERVICE, rights: READ, is_for_files: false }];
/// Rights on the directory of the log files, which may also hold those of other Aspia programs: the service may create
/// files, and has full access only to its own.
const LOG_DIRECTORY: &[AccessGrant] = &[
    AccessGrant { to: SERVICE, rights: READ | FILE_ADD_FILE, is_for_files: false },
    AccessGrant { to: CREATOR, rights: MODIFY, is_for_files: true },
];

/// Lets the service write log files in a directory. A missing directory is created with rights only for the system,
/// administrators and the service; to an existing one, the rights of the service are added.
///
/// # Errors
/// The system's error, or why the directory is not trusted.
pub(super) fn prepare_log_directory(path: &Path) -> io::Result<()> {
    match create_directory(path, &build_descriptor(LOG_DIRECTORY)) {
        Err(error) if error.raw_os_error() == Some(ERROR_ALREADY_EXISTS.cast_signed()) => {
            let open = open(path)?;
            if !open.metadata()?.is_dir() {
                return Err(io::Error::other("it is not a directory; remove or rename it"));
            }
            add_grants(&open, LOG_DIRECTORY)
        }
        made => made,
    }
}

/// Creates the directory of the configuration, which only the system and administrators may change, and the service may
/// list.
///
/// # Errors
/// The system's error.
pub(super) fn make_configuration_directory(path: &Path) -> io::Result<()> {
    create_directory(path, &build_descriptor(CONFIGURATION))
}

/// The security descriptor of a new directory, in SDDL: owned by the administrators, not inheriting from its parent,
/// with full rights for the system and administrators that everything in it inherits.
fn build_descriptor(grants: &[AccessGrant]) -> String {
    let grants = grants.iter().map(|AccessGrant { to, rights, is_for_files }| {
        let inheritance = if *is_for_files { "OIIO" } else { "" };
        format!("(A;{inheritance};{rights:#x};;;{to})")
    });
    grants.fold("O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)".to_owned(), |all, grant| all + &grant)
}

/// Checks that an existing directory belongs to an administrator and is not a link, without changing its permissions.
///
/// # Errors
/// The system's error, or why the directory is not trusted.
pub(super) fn check_directory(path: &Path) -> io::Result<()> {
    Security::of(&open(path)?)?.check_owner()
}

/// Lets the service read a file, if there is one.
///
/// # Errors
/// The system's error, or why the file is not trusted.
pub(super) fn let_service_read(path: &Path) -> io::Result<()> {
    match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(open) => add_grants(&open, CONFIGURATION),
    }
}

/// Removes all privileges of the account except [`PRIVILEGE`] from the service.
///
/// # Errors
/// The system's error.
pub(super) fn limit_privileges(service: &Service) -> io::Result<()> {
    // A list of zero-terminated strings, and a final zero.
    let mut list: Vec<u16> = PRIVILEGE.encode_utf16().chain([0, 0]).collect();
    let info = SERVICE_REQUIRED_PRIVILEGES_INFOW { pmszRequiredPrivileges: list.as_mut_ptr() };
    // SAFETY: the handle is open as long as `service` lives; `info` and its list, which ends with two zeros, outlive the
    // call, and `info` is the structure of this information level.
    let changed = unsafe {
        ChangeServiceConfig2W(
            service.raw_handle(),
            SERVICE_CONFIG_REQUIRED_PRIVILEGES_INFO,
            (&raw const info).cast(),
        )
    };
    if changed == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Opens a directory or file in order to read and change its permissions; never the target of a link.
fn open(path: &Path) -> io::Result<File> {
    let open = OpenOptions::new()
        .access_mode(READ_CONTROL | WRITE_DAC | FILE_READ_ATTRIBUTES)
        .custom_flags(FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OPEN_REPARSE_POINT)
        .open(path)?;
    if open.metadata()?.file_attributes() & FILE_ATTRIBUTE_REPARSE_POINT != 0 {
        return Err(io::Error::other("it is a link to somewhere else; remove it"));
    }
    Ok(open)
}

/// Memory that the system has allocated and that must be freed with `LocalFree`.
struct LocalAllocation(*mut c_void);

impl Drop for LocalAllocation {
    fn drop(&mut self) {
        // SAFETY: the functions that allocate it document that it is freed this way, and nothing else owns it.
        unsafe { LocalFree(self.0) };
    }
}

fn check_code(code: u32) -> io::Result<()> {
    match code {
        ERROR_SUCCESS => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.cast_signed())),
    }
}

/// Creates a directory with a security descriptor in SDDL.
fn create_directory(path: &Path, descriptor: &str) -> io::Result<()> {
    let path: Vec<u16> = path.as_os_str().encode_wide().chain([0]).collect();
    let descriptor: Vec<u16> = descriptor.encode_utf16().chain([0]).collect();
    let mut made = ptr::null_mut();
    // SAFETY: the text is zero-terminated; `made` is written if the result is not 0; the length is not requested.
    let parsed = unsafe {
        ConvertStringSecurityDescriptorToSecurityDescriptorW(
            descriptor.as_ptr(),
            SDDL_REVISION_1,
            &raw mut made,
            ptr::null_mut(),
        )
    };
    if parsed == 0 {
        return Err(io::Error::last_os_error());
    }
    let made = LocalAllocation(made);
    let attributes = SECURITY_ATTRIBUTES {
        #[expect(clippy::cast_possible_truncation, reason = "a few bytes")]
        nLength: size_of::<SECURITY_ATTRIBUTES>() as u32,
        lpSecurityDescriptor: made.0,
        bInheritHandle: 0,
    };
    // SAFETY: the path is zero-terminated; the descriptor is valid, and both outlive the call.
    let created = unsafe { CreateDirectoryW(path.as_ptr(), &raw const attributes) };
    if created == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The owner and the access control list of a file.
struct Security {
    owner: PSID,
    list: *mut ACL,
    /// Owns the memory of the other two.
    _descriptor: LocalAllocation,
}

impl Security {
    fn of(open: &File) -> io::Result<Self> {
        let (mut owner, mut list): (PSID, *mut ACL) = (ptr::null_mut(), ptr::null_mut());
        let mut descriptor = ptr::null_mut();
        // SAFETY: the handle is open, and the results are writable. `owner` and `list` point into `descriptor`.
        check_code(unsafe {
            GetSecurityInfo(
                open.as_raw_handle(),
                SE_FILE_OBJECT,
                OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION,
                &raw mut owner,
                ptr::null_mut(),
                &raw mut list,
                ptr::null_mut(),
                &raw mut descriptor,
            )
        })?;
        Ok(Self { owner, list, _descriptor: LocalAllocation(descriptor) })
    }

    /// Checks that the file belongs to an administrator.
    fn check_owner(&self) -> io::Result<()> {
        if is_trusted(self.owner, &*current_user()?)? {
            return Ok(());
        }
        Err(io::Error::other(
            "its owner may not be an administrator; look at what is in it, then give it to the administrators \
             (takeown /a /f PATH), or remove it",
        ))
    }
}

/// Whether `owner`, a valid SID, may be trusted like an administrator. The caller is an administrator who runs as
/// `user`.
fn is_trusted(owner: PSID, user: &User) -> io::Result<bool> {
    let service = parse_sid(SERVICE)?;
    // SAFETY: all three SIDs are valid during these calls.
    Ok(unsafe {
        IsWellKnownSid(owner, WinBuiltinAdministratorsSid) != 0
            || IsWellKnownSid(owner, WinLocalSystemSid) != 0
            || EqualSid(owner, user.sid()) != 0
            // The service itself recreates its log directory if that has been removed.
            || EqualSid(owner, service.0) != 0
    })
}

/// Adds `grants` to the access control list of an open file.
fn add_grants(open: &File, grants: &[AccessGrant]) -> io::Result<()> {
    let security = Security::of(open)?;
    security.check_owner()?;
    let accounts: Vec<LocalAllocation> =
        grants.iter().map(|grant| parse_sid(grant.to)).collect::<io::Result<_>>()?;
    let entries: Vec<EXPLICIT_ACCESS_W> = grants
        .iter()
        .zip(&accounts)
        .map(|(grant, account)| EXPLICIT_ACCESS_W {
            grfAccessPermissions: grant.rights,
            grfAccessMode: GRANT_ACCESS,
            grfInheritance: match grant.is_for_files {
                true => OBJECT_INHERIT_ACE | INHERIT_ONLY_ACE,
                false => NO_INHERITANCE,
            },
            Trustee: TRUSTEE_W {
                pMultipleTrustee: ptr::null_mut(),
                MultipleTrusteeOperation: NO_MULTIPLE_TRUSTEE,
                TrusteeForm: TRUSTEE_IS_SID,
                TrusteeType: TRUSTEE_IS_UNKNOWN,
                ptstrName: account.0.cast(),
            },
        })
        .collect();
    #[expect(clippy::cast_possible_truncation, reason = "one or two")]
    let count = entries.len() as u32;
    let mut new = ptr::null_mut();
    // SAFETY: `count` is the number of entries, and `accounts` outlives the call; the list is valid as long as
    // `security` lives.
    check_code(unsafe { SetEntriesInAclW(count, entries.as_ptr(), security.list, &raw mut new) })?;
    let new = LocalAllocation(new.cast());
    // SAFETY: the handle is open and `new` is a valid list; null pointers leave the rest unchanged.
    check_code(unsafe {
        SetSecurityInfo(
            open.as_raw_handle(),
            SE_FILE_OBJECT,
            DACL_SECURITY_INFORMATION,
            ptr::null_mut(),
            ptr::null_mut(),
            new.0.cast(),
            ptr::null(),
        )
    })
}

/// The pseudo-handle for the access token of this process (`GetCurrentProcessToken` in the headers of Windows).
const THIS_PROCESS: HANDLE = -4_isize as HANDLE;
/// The size of [`User`], in bytes.
const USER_SIZE: u32 = 128;

/// The user of this process: a `TOKEN_USER`, followed by the SID that it points to, which has 68 bytes at most.
struct User([u64; 16]);

impl User {
    /// The SID of the account, valid as long as `self` lives.
    fn sid(&self) -> PSID {
        // SAFETY: the system has written this structure here, and its alignment is not larger.
        unsafe { (*self.0.as_ptr().cast::<TOKEN_USER>()).User.Sid }
    }
}

fn current_user() -> io::Result<Box<User>> {
    // Boxed before the system writes into it, since the structure points into itself.
    let mut user = Box::new(User([0; 16]));
    let mut length = 0;
    // SAFETY: the buffer is writable and `USER_SIZE` bytes long; `length` is writable.
    let filled = unsafe {
        GetTokenInformation(
            THIS_PROCESS,
            TokenUser,
            user.0.as_mut_ptr().cast(),
            USER_SIZE,
            &raw mut length,
        )
    };
    if filled == 0 { Err(io::Error::last_os_error()) } else { Ok(user) }
}

/// Parses the text form of a SID.
fn parse_sid(number: &str) -> io::Result<LocalAllocation> {
    let text: Vec<u16> = number.encode_utf16().chain([0]).collect();
    let mut sid = ptr::null_mut();
    // SAFETY: the text is zero-terminated; `sid` is written if the result is not 0.
    let parsed = unsafe { ConvertStringSidToSidW(text.as_ptr(), &raw mut sid) };
    if parsed == 0 { Err(io::Error::last_os_error()) } else { Ok(LocalAllocation(sid)) }
}

#[cfg(test)]
mod tests {
    use super::super::NAME;
    use super::*;
    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

    #[test]
    fn the_sid_is_that_of_the_services_account() {
        let name: Vec<u8> = NAME.to_uppercase().encode_utf16().flat_map(u16::to_le_bytes).collect();
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &name);
        let parts = hash.as_ref().chunks(4).map(|four| {
            let four: [u8; 4] = four.try_into().unwrap();
            format!("-{}", u32::from_le_bytes(four))
        });
        assert_eq!(SERVICE, format!("S-1-5-80{}", parts.collect::<String>()));
        assert!(parse_sid(SERVICE).is_ok());
        assert_eq!(size_of::<User>(), USER_SIZE as usize);
        assert!(!current_user().unwrap().sid().is_null());
    }

    #[test]
    fn only_administrators_the_system_and_the_service_are_trusted() {
        let user = current_user().unwrap();
        let trusted = |number: &str| is_trusted(parse_sid(number).unwrap().0, &user).unwrap();
        for administrator in ["S-1-5-32-544", "S-1-5-18", SERVICE] {
            assert!(trusted(administrator), "{administrator}");
        }
        assert!(is_trusted(user.sid(), &user).unwrap());
        // Users, Everyone, another service, an ordinary user.
        for other in ["S-1-5-32-545", "S-1-1-0", "S-1-5-19", "S-1-5-21-1-2-3-1234"] {
            assert!(!trusted(other), "{other}");
        }
    }

    #[test]
    fn the_service_gets_no_access_to_other_programs_files() {
        for grant in [LOG_DIRECTORY, CONFIGURATION].concat() {
            if grant.to == SERVICE {
                assert!(!grant.is_for_files && grant.rights & DELETE == 0, "{grant:?}");
            } else {
                assert!(grant.to == CREATOR && grant.is_for_files, "{grant:?}");
            }
        }
    }

    #[test]
    fn directories_are_created_once_and_then_accepted() {
        let outside = tempfile::tempdir().unwrap();
        let logs = outside.path().join("logs");
        for _ in 0..2 {
            prepare_log_directory(&logs).unwrap();
            assert!(logs.is_dir());
        }
        let path = outside.path().join("aspia");
        make_configuration_directory(&path).unwrap();
        check_directory(&path).unwrap();
        std::fs::write(path.join("relay.json"), "{}").unwrap();
        let_service_read(&path.join("relay.json")).unwrap();
        let_service_read(&path.join("nothing.json")).unwrap();
    }

    #[test]
    fn a_file_in_place_of_the_log_directory_is_an_error() {
        let outside = tempfile::tempdir().unwrap();
        let path = outside.path().join("aspia");
        std::fs::write(&path, "").unwrap();
        let error = prepare_log_directory(&path).unwrap_err().to_string();
        assert!(error.contains("not a directory"), "{error}");
    }
}
