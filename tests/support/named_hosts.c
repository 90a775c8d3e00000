/* Names for a program that is started with this in LD_PRELOAD: names that end in ".test" are 127.0.0.1.

   While the file $HANGING exists, looking up a name that begins with "slow" does not return; while $UNKNOWN exists, a
   name that begins with "lost" is not known. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int lookup(const char *, const char *, const struct addrinfo *, struct addrinfo **);

static int is(const char *variable) {
    const char *path = getenv(variable);
    return path != NULL && access(path, F_OK) == 0;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    lookup *real = (lookup *)dlsym(RTLD_NEXT, "getaddrinfo");
    size_t size = name == NULL ? 0 : strlen(name);
    if (size > 5 && strcmp(name + size - 5, ".test") == 0) {
        while (strncmp(name, "slow", 4) == 0 && is("HANGING"))
            usleep(10000);
        if (strncmp(name, "lost", 4) == 0 && is("UNKNOWN"))
            return EAI_NONAME;
        name = "127.0.0.1";
    }
    return real(name, service, hints, found);
}
