// A stand-in for bcryptprimitives.dll, which Wine 8 lacks: the one function that Rust's standard library calls, implemented
// with what Wine has instead. Later versions of Wine have the file. Only for tests under Wine.
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG length);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T length)
{
    while (length > 0) {
        ULONG part = length < 65536 ? (ULONG)length : 65536;
        if (!SystemFunction036(data, part))
            return FALSE;
        data += part;
        length -= part;
    }
    return TRUE;
}
