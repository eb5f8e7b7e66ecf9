//! Any messages to and from the descriptor store: decoding them never fails in another way than with an error, and what was
//! decoded is encoded and decoded to the same.
#![no_main]

use aspia_relay::fd_store::protocol::{StoreAnswer, StoreRequest};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = StoreRequest::decode(data) {
        let again = StoreRequest::decode(&*request.encode_to_vec());
        assert_eq!(again.as_ref(), Ok(&request));
    }
    if let Ok(answer) = StoreAnswer::decode(data) {
        let again = StoreAnswer::decode(&*answer.encode_to_vec());
        assert_eq!(again.as_ref(), Ok(&answer));
    }
});
