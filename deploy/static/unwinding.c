/* What GCC's library for exceptions, which Debian builds for glibc, needs in a static program with musl. Tested by
   tests/static/unwinding. */

#define _GNU_SOURCE
#include <link.h>
#include <pthread.h>
#include <stdint.h>

/* The library refers to these weakly, yet calls them without a check, because glibc has always had them since 2.34. Without a
   strong reference they would not be linked and would be null. */
void *const aspia_relay_unwinding_needs[] = {
    pthread_once,        pthread_key_create,  pthread_getspecific,
    pthread_setspecific, pthread_mutex_lock,  pthread_mutex_unlock,
};

/* The library finds out which part of the program an address belongs to with a function that glibc has since 2.35 and musl
   lacks. A static program is one object and musl knows where its parts are, so this function answers from that. The
   structure is that of glibc's <dlfcn.h>, for architectures without dlfo_eh_dbase. */

#if !defined __x86_64__ && !defined __aarch64__
#error "dlfo_eh_dbase may be part of the structure here"
#endif

struct dl_find_object {
    unsigned long long dlfo_flags;
    void *dlfo_map_start;
    void *dlfo_map_end;
    struct link_map *dlfo_link_map;
    void *dlfo_eh_frame;
    unsigned long long reserved[7];
};

struct question {
    uintptr_t address;
    struct dl_find_object *answer;
};

static int look(struct dl_phdr_info *object, size_t size, void *argument)
{
    struct question *question = argument;
    struct dl_find_object answer = {0};
    (void)size;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &object->dlpi_phdr[i];
        uintptr_t start = object->dlpi_addr + part->p_vaddr;
        if (part->p_type == PT_LOAD && question->address >= start && question->address - start < part->p_memsz) {
            answer.dlfo_map_start = (void *)start;
            answer.dlfo_map_end = (void *)(start + part->p_memsz);
        } else if (part->p_type == PT_GNU_EH_FRAME) {
            answer.dlfo_eh_frame = (void *)start;
        }
    }
    if (!answer.dlfo_map_start || !answer.dlfo_eh_frame)
        return 0;
    *question->answer = answer;
    return 1;
}

int _dl_find_object(void *address, struct dl_find_object *answer)
{
    struct question question = {(uintptr_t)address, answer};
    return dl_iterate_phdr(look, &question) ? 0 : -1;
}
