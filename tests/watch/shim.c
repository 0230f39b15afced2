/* Put before the C library by LD_PRELOAD: writes down whom a process wants to reach.

   One line a call into the file that WATCH_CALLS names: call, family, address.
   What it stands in front of is called as ever.  */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void note(const char *call, const char *family, const char *address)
{
    const char *path = getenv("WATCH_CALLS");
    char line[512];
    int kept = errno;
    if (path != NULL) {
        int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        int length = snprintf(line, sizeof line, "%s %s %s\n", call, family, address);
        if (length > (int)sizeof line - 1)
            length = sizeof line - 1;
        /* A watch that cannot write would make every test pass. */
        if (file < 0 || write(file, line, length) != length)
            abort();
        close(file);
    }
    errno = kept;
}

static void note_address(const char *call, const struct sockaddr *to)
{
    char host[INET6_ADDRSTRLEN], text[INET6_ADDRSTRLEN + 16];
    if (to == NULL)  /* sent over a connection, which was noted when it was made */
        return;
    if (to->sa_family == AF_INET) {
        const struct sockaddr_in *four = (const struct sockaddr_in *)to;
        inet_ntop(AF_INET, &four->sin_addr, host, sizeof host);
        snprintf(text, sizeof text, "%s:%d", host, ntohs(four->sin_port));
        note(call, "inet", text);
    } else if (to->sa_family == AF_INET6) {
        const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)to;
        if (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr)) {  /* gRPC writes IPv4 so */
            inet_ntop(AF_INET, &six->sin6_addr.s6_addr[12], host, sizeof host);
            snprintf(text, sizeof text, "%s:%d", host, ntohs(six->sin6_port));
            note(call, "inet", text);
            return;
        }
        inet_ntop(AF_INET6, &six->sin6_addr, host, sizeof host);
        snprintf(text, sizeof text, "[%s]:%d", host, ntohs(six->sin6_port));
        note(call, "inet6", text);
    } else if (to->sa_family == AF_UNIX) {
        note(call, "unix", ((const struct sockaddr_un *)to)->sun_path);
    } else if (to->sa_family != AF_UNSPEC && to->sa_family != AF_NETLINK) {
        snprintf(text, sizeof text, "%d", to->sa_family);
        note(call, "other", text);
    }
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int connect(int socket, const struct sockaddr *to, socklen_t length)
{
    note_address("connect", to);
    return NEXT(connect)(socket, to, length);
}

ssize_t sendto(int socket, const void *bytes, size_t n, int flags, const struct sockaddr *to,
               socklen_t length)
{
    note_address("sendto", to);
    return NEXT(sendto)(socket, bytes, n, flags, to, length);
}

ssize_t sendmsg(int socket, const struct msghdr *message, int flags)
{
    note_address("sendmsg", message->msg_name);
    return NEXT(sendmsg)(socket, message, flags);
}

int sendmmsg(int socket, struct mmsghdr *messages, unsigned int n, int flags)
{
    for (unsigned int at = 0; at < n; at++)
        note_address("sendmmsg", messages[at].msg_hdr.msg_name);
    return NEXT(sendmmsg)(socket, messages, n, flags);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found)
{
    if (node != NULL)
        note("getaddrinfo", "name", node);
    return NEXT(getaddrinfo)(node, service, hints, found);
}

struct hostent *gethostbyname(const char *name)
{
    note("gethostbyname", "name", name);
    return NEXT(gethostbyname)(name);
}

struct hostent *gethostbyname2(const char *name, int family)
{
    note("gethostbyname2", "name", name);
    return NEXT(gethostbyname2)(name, family);
}

int gethostbyname_r(const char *name, struct hostent *found, char *buffer, size_t size,
                    struct hostent **result, int *error)
{
    note("gethostbyname_r", "name", name);
    return NEXT(gethostbyname_r)(name, found, buffer, size, result, error);
}
