/* Prints the IPv4 addresses of a name, as the C library's resolver finds them. Compiled with
 * musl by the DNS cases. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found, *at;
	char text[INET_ADDRSTRLEN];
	int error;

	if (argc != 2)
		return 2;
	error = getaddrinfo(argv[1], NULL, &hints, &found);
	if (error) {
		fprintf(stderr, "%s: %s\n", argv[1], gai_strerror(error));
		return 1;
	}
	for (at = found; at; at = at->ai_next) {
		struct sockaddr_in *in = (struct sockaddr_in *)at->ai_addr;

		if (at->ai_family == AF_INET && inet_ntop(AF_INET, &in->sin_addr, text, sizeof text))
			puts(text);
	}
	freeaddrinfo(found);
	return 0;
}
